/** The target id that the loss ignores. Its position adds nothing to the loss or the gradient. */
export const ignoredTarget = -100;
