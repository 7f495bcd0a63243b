"""vmoe: the V-MoE family of vision transformers and its trainer, on layers moegen generates."""
