"""The design system both consoles share."""
