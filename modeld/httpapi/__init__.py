"""How do clients talk to modeld? HTTP/1.1 with JSON and server-sent events; knows the Service protocol and nothing behind it."""
