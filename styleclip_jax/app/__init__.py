"""The web service: a page for editing faces by text, and the same edits over HTTP."""
