"""Model families as Relax nn modules, one file per Hugging Face ``model_type``."""
