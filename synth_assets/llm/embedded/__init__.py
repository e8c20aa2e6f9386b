"""The default model: a small one that runs on this machine, with no key and no account."""
