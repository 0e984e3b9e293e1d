#!/usr/bin/env python3
"""What the Python package safetensors makes of a file: exit code 0 if it takes it, 1 if it refuses it."""

import sys

from safetensors import SafetensorError, deserialize

try:
    with open(sys.argv[1], "rb") as file:
        deserialize(file.read())
except SafetensorError as error:
    print(error)
    sys.exit(1)
