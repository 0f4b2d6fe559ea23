"""Small trainings that each show one problem or one remedy. Every file also runs as a script."""
