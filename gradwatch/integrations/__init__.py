"""The monitor for trainers other than Lightning's: Hugging Face's Trainer and Lightning's Fabric."""
