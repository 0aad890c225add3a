"""The console's pages, one file a subject. Each reads and acts through the API as its visitor may."""
