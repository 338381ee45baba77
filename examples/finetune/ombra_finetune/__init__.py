"""MARILL's recipe: fine-tune a public model so that little of it runs under MPC. See `docs/finetune.md` of the project."""
