"""Where clips and prompts come from."""
