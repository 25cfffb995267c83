"""Every schedule family, imported once so that it registers itself."""
