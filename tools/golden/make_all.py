"""Makes every golden file of this folder's rooms: `python tools/golden/make_all.py --out testdata/golden [--only ROOM …]`."""

import argparse

import models
import blocks
import foreign
import graphs
import hdf5
import likeness
import masks
import pipeline_diffusers
import pipeline_kdiffusion
import samplers
import shortcuts
import text
import tiny
import unet
import vae

ROOMS = {"layouts": models, "text": text, "blocks": blocks, "unet": unet, "vae": vae, "samplers": samplers, "masks": masks, "shortcuts": shortcuts, "tiny": tiny, "foreign": foreign, "graphs": graphs, "hdf5": hdf5, "likeness": likeness,
         "pipeline_diffusers": pipeline_diffusers, "pipeline_kdiffusion": pipeline_kdiffusion}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="testdata/golden")
    parser.add_argument("--only", nargs="+", choices=ROOMS, default=list(ROOMS))
    chosen = parser.parse_args()
    for room in chosen.only:
        ROOMS[room].make(chosen.out)
