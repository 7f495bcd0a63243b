"""The intermediate representation: types, programs, text, verifier, rewriter, interpreter."""
