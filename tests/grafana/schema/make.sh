#!/bin/sh
# Writes grafana-VERSION.json: JSON Schemas made from the TypeScript types of npm's @grafana/schema (Apache-2.0), one for
# a whole dashboard and, by the name of the panel's type, one for the options and field options of each panel.
# Usage: ./make.sh VERSION...   Needs npm and the network; nothing but the result is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund ts-json-schema-generator@2 >/dev/null
echo '{"compilerOptions": {"module": "esnext", "moduleResolution": "bundler", "skipLibCheck": true}}' >tsconfig.json

schema() {
    node_modules/.bin/ts-json-schema-generator --path root.ts --tsconfig tsconfig.json --type Root --no-type-check \
        --jsDoc none --minify --no-top-ref
}

for version in "$@"; do
    npm pack --silent "@grafana/schema@$version" >/dev/null
    rm -rf node_modules/@grafana && mkdir -p node_modules/@grafana/schema
    tar xzf "grafana-schema-$version.tgz" -C node_modules/@grafana/schema --strip-components 1
    types=$(find node_modules/@grafana/schema/dist -path '*raw/dashboard/x/*.d.ts' | head -n 1)
    {
        echo "import * as raw from './${types%.d.ts}'; export type Root = raw.Dashboard;" >root.ts
        printf '{\n"dashboard": '
        schema
        for panel in timeseries stat table heatmap nodegraph bargauge; do
            file=$(find "$(dirname "$types")/../../composable/$panel/panelcfg/x" -name '*.d.ts')
            custom=$(grep -q 'interface FieldConfig\b' "$file" && echo 'panel.FieldConfig' || echo '{}')
            {
                echo "import * as panel from './${file%.d.ts}';"
                echo "export interface Root { options: panel.Options; custom?: $custom }"
            } >root.ts
            printf ',\n"%s": ' "$panel"
            schema
        done
        printf '\n}\n'
    } >schema.json
    cp schema.json "$here/grafana-$version.json"
done
