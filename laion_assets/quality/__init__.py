"""What must hold of each stage's files, and pictures of them. Reads files, imports no stage."""
