def summarize(text: str) -> tuple[str, int]:
    """Stands for an AI model: a word is a token. Returns the summary and the tokens."""
    words = text.split()
    if not words:
        raise ValueError("there is nothing to summarize")
    return " ".join(words[:5]), len(words)
