"""What a user can set or type is documented; the documents are made from the code and may not lag behind."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs"))


def test_the_reference_of_settings_and_commands_is_up_to_date() -> None:
    import reference

    stale = [name for name, text in reference.pages().items() if (ROOT / "docs" / name).read_text() != text]
    assert stale == [], f"run: python docs/reference.py, then commit {stale}"


def test_every_setting_has_a_sentence() -> None:
    import reference

    assert [f"{who}: {field.key}" for who, field in reference.settings() if not field.help] == []


def test_every_command_has_a_sentence() -> None:
    import reference

    assert [path for path, help_text in reference.commands() if not help_text] == []
