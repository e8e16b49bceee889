// Prints what failed and how many passed, and is red unless as many passed as are to: node report.mjs REPORT EXPECTED [WHERE]
import { readFileSync } from "node:fs";

const [path, expected, where] = process.argv.slice(2);
const report = JSON.parse(readFileSync(path, "utf8"));
for (const test of report.testResults.flatMap((file) => file.assertionResults)) {
  if (test.status === "failed") console.log(`FAILED ${test.fullName}\n${test.failureMessages.join("\n")}`);
}
const { numPassedTests: passed, numFailedTests: failed, numPendingTests: skipped } = report;
console.log(`conformance${where ? `, ${where}` : ""}: ${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(passed === Number(expected) && failed === 0 ? 0 : 1);
