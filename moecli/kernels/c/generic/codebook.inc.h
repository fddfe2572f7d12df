/* The nearest code of q4's codebook, by one small table. */
#ifndef MOECLI_CODEBOOK_H
#define MOECLI_CODEBOOK_H

#include "numbers.inc.h"

#define CELLS 1024 /* half a code wide, around 0: every boundary between two codes is an edge */

/* Cell to index of the nearest code: (cell + steps[cell / 16]) / 512, for no 16 cells hold two boundaries. */
struct search {
    int16_t steps[CELLS / 16];
    int16_t edges[16]; /* 4 code + 1023: twice a cell less that is 4 times the distance from its middle to the code */
};

static struct search new_search(void) {
    static const int8_t codes[16] = CODEBOOK;
    struct search search;
    for (int block = 0; block < CELLS / 16; block++) {
        int first = 16 * block, index = 0;
        while (index < 15 && codes[index] + codes[index + 1] + CELLS / 2 <= first)
            index++;
        int boundary = index < 15 ? codes[index] + codes[index + 1] + CELLS / 2 : CELLS;
        search.steps[block] = (int16_t)(boundary < first + 16 ? (index + 1) * 512 - boundary : index * 512 - first);
    }
    for (int index = 0; index < 16; index++)
        search.edges[index] = (int16_t)(4 * codes[index] + CELLS - 1);
    return search;
}

#endif
