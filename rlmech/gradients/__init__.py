"""First-order estimates of patches, their repairs, and the certificate that says where they are exact."""
