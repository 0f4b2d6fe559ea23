"""Small trainings that show one problem, or one remedy, each; every file also runs as a script."""
