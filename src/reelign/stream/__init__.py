"""Video that is watched while it is made (``reelign stream MODEL``)."""
