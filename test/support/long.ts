/**
 * Test files that `npm test` leaves to `npm run test:all`: storms, large files, several builds, programs compiled with
 * sanitizers, runs that are killed again and again. Everything else is in `npm test`, which takes ten minutes at most on two
 * cores with the installation and the build. `vitest run` on its own runs both.
 */
export const longTests = ["test/fault/a08-leaks.test.ts"];
