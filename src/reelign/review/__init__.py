"""The web page where people watch, compare and label takes (``reelign review TAKES``)."""
