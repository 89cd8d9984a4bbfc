"""What every page that reelign serves shares: who may come in, signing in, the shell of a page, and serving it."""
