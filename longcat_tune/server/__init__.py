"""The web UI: pages over the tool's own files and commands; nothing else learns that it exists."""
