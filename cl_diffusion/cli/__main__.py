"""``python -m cl_diffusion.cli``: the command where its script is not on the path."""

from cl_diffusion.cli.command import command_line

if __name__ == "__main__":
    command_line()
