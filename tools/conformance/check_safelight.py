#!/usr/bin/env python3
"""What the command `safelight` (or $SAFELIGHT) makes of a file: exit code 0 if it takes it, 1 if it refuses it.

    python3 check_safelight.py [compat|spec] FILE
"""

import json
import os
import subprocess
import sys

verdict = sys.argv[1] if len(sys.argv) > 2 else "compat"
command = [os.environ.get("SAFELIGHT", "safelight"), "lint", "--json", sys.argv[-1]]
done = subprocess.run(command, capture_output=True, text=True)
print(done.stderr, end="", file=sys.stderr)
if done.returncode not in (0, 1):  # 1: there are findings
    sys.exit(2)
sys.exit(0 if json.loads(done.stdout)["accepted"][verdict] else 1)
