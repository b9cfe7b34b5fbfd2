/* Prints the bits of the logits of every image, eight hexadecimal digits each, one image a line. */
#include "model.h"

#include <stddef.h>
#include <string.h>

extern const uint8_t images[];
extern const size_t num_images;
void print(const char *text);

int main(void)
{
    static float logits[MCN_MODEL_CLASSES];
    const size_t size = (size_t)MCN_MODEL_HEIGHT * MCN_MODEL_WIDTH * MCN_MODEL_CHANNELS;
    for (size_t n = 0; n < num_images; n++) {
        mcn_model_predict(images + n * size, logits);
        for (size_t c = 0; c < MCN_MODEL_CLASSES; c++) {
            char text[10];
            uint32_t bits;
            memcpy(&bits, &logits[c], sizeof bits);
            for (size_t digit = 0; digit < 8; digit++) {
                text[digit] = "0123456789abcdef"[bits >> (28 - 4 * digit) & 15];
            }
            text[8] = ' ';
            text[9] = '\0';
            print(text);
        }
        print("\n");
    }
    return 0;
}
