"""The processes of a run: thin shells around the library, and the command line. The library never imports them."""
