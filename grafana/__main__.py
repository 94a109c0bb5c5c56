"""Writes every dashboard and the rules: `python -m grafana`."""

from grafana.files import ROOT, files


def main() -> None:
    for path, text in files().items():
        target = ROOT / path
        target.parent.mkdir(exist_ok=True)
        target.write_text(text)
        print(target.relative_to(ROOT.parent))


if __name__ == "__main__":
    main()
