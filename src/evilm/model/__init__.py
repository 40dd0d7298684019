"""The networks of the paper: E-ViLM, its video tokenizer, and their parts."""
