"""What others load: Hugging Face's folders, FastDeploy's, static programs; every export is compared with its source."""
