"""A small synthetic web and data set whose captions say what each picture shows."""
