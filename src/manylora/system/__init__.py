"""Access to the operating system: streams, files, limits of the process, and text for terminals."""
