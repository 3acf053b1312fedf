"""The nouns and their truth: specs, states, tables, and the verbs that change them. No torch, no web framework."""
