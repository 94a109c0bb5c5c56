#!/bin/sh
# Writes prometheus-operator.json: JSON Schemas of PodMonitor and PrometheusRule, by kind, made from the TypeScript types of npm's
# @kubernetes-models/prometheus-operator (MIT), which are made from the operator's own definitions.
# Usage: ./make.sh   Needs npm and the network; nothing but the result is kept.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-audit --no-fund ts-json-schema-generator@2 @kubernetes-models/prometheus-operator@6.0.0 >/dev/null
echo '{"compilerOptions": {"module": "esnext", "moduleResolution": "bundler", "skipLibCheck": true}}' >tsconfig.json
{
    printf '{\n'
    for kind in PodMonitor PrometheusRule; do
        [ "$kind" = PodMonitor ] || printf ',\n'
        echo "import {I$kind} from '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1/$kind';" >root.ts
        echo "export type Root = I$kind;" >>root.ts
        printf '"%s": ' "$kind"
        node_modules/.bin/ts-json-schema-generator --path root.ts --tsconfig tsconfig.json --type Root --no-type-check \
            --jsDoc none --minify --no-top-ref
    done
    printf '\n}\n'
} >schema.json
cp schema.json "$here/prometheus-operator.json"
