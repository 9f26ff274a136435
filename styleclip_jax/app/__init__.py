"""The service: a page to edit faces by text in the browser, and the same over HTTP."""
