"""Tables and figures of papers, made anew."""
