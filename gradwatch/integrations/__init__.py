"""The monitor for other trainers than Lightning's: Hugging Face's Trainer and Lightning's Fabric."""
