"""The brain and the faces: decides which job gets which slots, and serves API and command line. No torch."""
