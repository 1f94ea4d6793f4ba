"""Presets: one TOML file per experiment and profile, read by name with ``--config``."""
