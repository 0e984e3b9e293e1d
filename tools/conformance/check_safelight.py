#!/usr/bin/env python3
"""What the command `safelight` (or $SAFELIGHT) makes of a file: exit code 0 if it takes it, 1 if it refuses it."""

import os
import subprocess
import sys

FILE_IS_WRONG = 3  # safelight's exit code for a model that cannot be read

done = subprocess.run([os.environ.get("SAFELIGHT", "safelight"), "ls", sys.argv[1]], capture_output=True, text=True)
print(done.stderr, end="")
sys.exit({0: 0, FILE_IS_WRONG: 1}.get(done.returncode, 2))
