"""What is said of a part of a model before it is built, and the part that has nothing to build."""
