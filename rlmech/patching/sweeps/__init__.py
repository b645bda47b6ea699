"""The sweep engine: how thousands of patches are run on shared base runs, exactly and fast."""
