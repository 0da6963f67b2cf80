"""Configs: loading by path or name, overrides, validation, and configs from untrusted files."""
