/* The nearest code of a codebook to a number, by a table of cells a quarter of a code wide around 0. */
#ifndef MOECLI_CODEBOOK_H
#define MOECLI_CODEBOOK_H

#include "numbers.inc.h"

#define CELLS 512
#define CELLS_PER_CODE 4

struct search {
    const int8_t *codes;
    int count;
    uint8_t nearest[CELLS];  /* the index of the nearest code, the lower one of two */
    uint16_t squares[CELLS]; /* the squared distance to it, in cells */
};

static struct search new_search(enum format format) {
    struct search search = {format == Q4 ? q4_table : q3_table, format == Q4 ? 16 : 8, {0}, {0}};
    for (int cell = 0; cell < CELLS; cell++) {
        int least = CELLS, place = cell - CELLS / 2;
        for (int index = 0; index < search.count; index++) {
            int distance = abs(place - CELLS_PER_CODE * search.codes[index]);
            if (distance < least) {
                least = distance;
                search.nearest[cell] = (uint8_t)index;
            }
        }
        search.squares[cell] = (uint16_t)(least * least);
    }
    return search;
}

#endif
