"""Models as files and protobuf: reading, writing, what is checked before anything is built from them."""
