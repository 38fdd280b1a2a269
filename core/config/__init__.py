"""The one YAML: its tree of models and the strict loader."""
